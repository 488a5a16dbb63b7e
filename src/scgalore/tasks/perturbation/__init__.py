"""Expression after genetic perturbations."""
