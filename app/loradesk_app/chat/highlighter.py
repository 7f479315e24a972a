"""Marks code in a plain text: the text itself, blanks and fences included, stays as the model wrote it."""

from __future__ import annotations

import re

from PySide6.QtGui import QFont, QFontDatabase, QSyntaxHighlighter, QTextCharFormat, QTextDocument

from loradesk_app.theme import Theme

_FENCE = re.compile(r"^\s*(```|~~~)")
_INLINE = re.compile(r"`[^`\n]+`")
_BOLD = re.compile(r"\*\*[^*\n]+\*\*")
_HEADING = re.compile(r"^#{1,6} .*")
_PLAIN, _IN_CODE = 0, 1


class CodeHighlighter(QSyntaxHighlighter):
    """Fenced blocks and `inline code` in a fixed-pitch font, **bold** and headings in bold."""

    def __init__(self, document: QTextDocument, theme: Theme) -> None:
        super().__init__(document)
        self._theme = theme
        self._code = QTextCharFormat()
        self._fence = QTextCharFormat()
        self._bold = QTextCharFormat()
        self._bold.setFontWeight(QFont.Weight.DemiBold)
        theme.changed.connect(self.restyle)
        self.restyle()

    def restyle(self) -> None:
        """Take over the theme's colours."""
        family = QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont).families()
        for style in (self._code, self._fence):
            style.setFontFamilies(family)
            style.setBackground(self._theme.color("code"))
        self._fence.setForeground(self._theme.color("muted"))
        self.rehighlight()

    def highlightBlock(self, text: str) -> None:
        inside = self.previousBlockState() == _IN_CODE
        if _FENCE.match(text):
            self.setFormat(0, len(text), self._fence)
            self.setCurrentBlockState(_PLAIN if inside else _IN_CODE)
            return
        self.setCurrentBlockState(_IN_CODE if inside else _PLAIN)
        if inside:
            self.setFormat(0, len(text), self._code)
            return
        for pattern, style in ((_HEADING, self._bold), (_BOLD, self._bold), (_INLINE, self._code)):
            for match in pattern.finditer(text):
                self.setFormat(match.start(), match.end() - match.start(), style)
