"""One script for each published claim: ``python -m evidence SLUG`` repeats it and keeps its rows in results/."""
