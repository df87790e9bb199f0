"""Runners: who computes a step."""
