"""From a template in `artifacts/` to a container that answers: hosts, containers, profiles, steps with undo, health."""
