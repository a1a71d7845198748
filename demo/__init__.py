"""The newcomer's path: a real job, learned while you watch."""
