"""worldsim's trained policies inside LeRobot: ``lerobot-eval --x.discover_packages_path=worldsim.lerobot_plugin …``.

LeRobot imports this package and its modules when that flag is given; the prefix must not be ``--policy``, whose other flags
override the policy's config. ``worldsim models export RUN --to lerobot`` writes the folder for ``--policy.path``.
"""

from worldsim.lerobot_plugin import configuration_worldsim_world_modality  # noqa: F401 (registers the policy's config)
