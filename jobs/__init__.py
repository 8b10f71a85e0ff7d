"""One thin file a stage."""

import os

# Ray reads it when it is imported. Its merging of similar lines ("repeated 8x across cluster")
# would hide most lines of progress.
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
