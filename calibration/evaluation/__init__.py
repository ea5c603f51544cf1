"""What a bundle gets right, how near it comes to another, and what that costs: measured, scored, reported."""
