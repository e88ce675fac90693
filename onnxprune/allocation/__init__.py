"""How many units of each group go: ratios, targets, measured sensitivity and budgets."""
