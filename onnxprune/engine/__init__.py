"""The pruning engine: labels run through a graph, become units and groups, and are cut out exactly."""
