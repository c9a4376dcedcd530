"""Handwritten digits: three versions of a small image classifier. README.md is the model card."""
