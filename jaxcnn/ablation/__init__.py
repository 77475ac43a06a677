"""Studies: many runs that differ in what is asked about, and what may be said of them."""

from jaxcnn.ablation.study import Study, StudyRun

__all__ = ["Study", "StudyRun"]
