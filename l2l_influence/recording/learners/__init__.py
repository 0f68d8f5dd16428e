"""The learners that can be recorded, one file each."""
