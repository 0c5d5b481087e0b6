from steersman.pipelines.steer import steer

__all__ = ["steer"]
