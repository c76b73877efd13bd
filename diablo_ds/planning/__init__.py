"""What a run would need: memory, traffic and time on a cluster, from shapes alone."""
