"""NVIDIA cards of a host: what is there, who may use it, what is promised to whom."""
