"""Reinforcement with verifiable rewards: groups of imagined futures, their advantages, and the clipped objective."""
