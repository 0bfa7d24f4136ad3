"""Where containers live: the protocol in `base`, and `pct`, `ssh` and `lxc` behind it."""
