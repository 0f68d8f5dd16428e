"""Reference problems that tests share: in closed form, by plain autograd, and recorded learn2learn loops."""
