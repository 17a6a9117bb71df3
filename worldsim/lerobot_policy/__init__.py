"""LeRobot policies as folders: what lies in one, how it is built whole, and what it is shown.

Below the shelves, so that latents of a policy (``latent_actions``) and the acting policy (``policies``) are the same one.
"""
