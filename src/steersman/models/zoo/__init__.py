from steersman.models.zoo.networks import build_network, folder, load_network, read_network

__all__ = ["build_network", "folder", "load_network", "read_network"]
