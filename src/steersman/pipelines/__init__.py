from steersman.pipelines.entry import steer

__all__ = ["steer"]
