"""What a student is trained to lower: pure functions by what they compare, and the settings that weigh them."""
