"""Effects of perturbations by simple rules, which are baselines and priors."""
