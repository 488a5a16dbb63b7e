"""What a screen is: conditions read from labels, the cells of a screen, and mean profiles."""
