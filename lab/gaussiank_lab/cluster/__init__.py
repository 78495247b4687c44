"""The cost model's commands: probe a cluster, simulate it, advise. Only the probe needs torch."""
