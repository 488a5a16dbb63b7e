"""Which perturbations train a model, which choose its epoch, and which are held out."""
