"""Settings of all tests."""

from hypothesis import settings

# A slow example says that the machine is busy, and nothing about what is tested.
settings.register_profile("hansa", deadline=None)
settings.load_profile("hansa")
