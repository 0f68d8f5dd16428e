"""Reference problems that tests share: in closed form, and by plain autograd."""
