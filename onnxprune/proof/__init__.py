"""What proves a pruned model: the cut, the outputs, the task, and the gates on them."""
