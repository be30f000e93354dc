"""Agents: a model that calls tools in a loop, under a policy that it can't change."""
