"""What train_step.py compares: our step and the plain PyTorch ways to compute the same."""
