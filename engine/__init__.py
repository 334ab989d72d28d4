"""Stageline."""
