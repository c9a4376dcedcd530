"""Spoken keywords: a small DS-CNN on 16 kHz audio, trained on synthetic speech. README.md is the model card."""
