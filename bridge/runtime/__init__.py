"""How commands and torch run here: command lines, ranks, images in parallel, torchvision."""
