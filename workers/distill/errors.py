"""Named failures of the distillation core: the thing, the place, the mend. None is retried."""


class DistillError(Exception):
    """Base of every named failure of the core; its text is shown on the run page as it is."""
