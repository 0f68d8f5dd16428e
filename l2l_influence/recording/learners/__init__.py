"""The learners that can be recorded, one file each; ``registry.py`` lists them."""
