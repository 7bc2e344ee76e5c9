"""The corpus to train on: what is said by whom (plan), the teacher that says it, and how its audio is stored."""
