"""The best engine for this machine: forms of each stage made, timed beside each other, held to a budget, and chosen."""
