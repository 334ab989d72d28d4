"""The image of a deployment: its folder, and what serves it, for a user without rights and a root that is read-only."""

from __future__ import annotations

from typing import Final

from engine.config import Deployment
from engine.core.keys import PREFIX
from engine.render.about import APP, USER, About

_TEXT: Final = """\
FROM python:3.12-slim

# What the stages import goes into requirements.txt. A wheel of Stageline that lies in the folder is taken, else one of
# this version from an index.
ARG STAGELINE_VERSION{version}
WORKDIR {app}
COPY . {app}
# The key is mounted where this runs, and is no business of whoever has the image: name its file in .dockerignore. A
# build that has copied one ends here.
RUN found="$(find {app} -type f -size -65k -exec grep -lE '^[[:space:]]*{key}' {{}} +)"; \\
    if [ -n "$found" ]; then echo "a key is no part of an image; add to .dockerignore: $found" >&2; exit 1; fi
RUN pip install --no-cache-dir --find-links {app} "stageline==$STAGELINE_VERSION" \\
    && if [ -f requirements.txt ]; then pip install --no-cache-dir -r requirements.txt; fi

ENV PYTHONDONTWRITEBYTECODE=1
USER {user}:{user}
ENTRYPOINT ["engine"]
CMD ["up", "{app}/{file}"]
"""


def render(deployment: Deployment, about: About) -> str:
    version = f"={about.version}" if about.version else ""
    return _TEXT.format(app=APP, user=USER, file=deployment.file.name, version=version, key=PREFIX)
