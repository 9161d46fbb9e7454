"""Sweeps: points of settings are trained under one budget and judged on records that no run reads."""
