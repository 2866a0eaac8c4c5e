"""How papers come in: files of several formats, and the starter shelf."""

from .files import detect as detect
from .files import import_file as import_file
from .report import Format as Format
from .report import ImportProgress as ImportProgress
from .report import ImportReport as ImportReport
from .starter import starter_papers as starter_papers
from .streams import UnreadableFile as UnreadableFile
