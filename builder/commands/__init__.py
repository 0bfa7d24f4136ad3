"""Click commands, one module a topic: parse, call, print."""
