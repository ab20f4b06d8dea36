"""Accuracy studies: their recipes, their results, and the page that is made from these."""
