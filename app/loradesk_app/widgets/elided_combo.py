"""A choice whose text ends in an ellipsis where there is no room for it; a style sheet's would just be cut."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QPaintEvent
from PySide6.QtWidgets import QComboBox, QStyle, QStyleOptionComboBox, QStylePainter

from loradesk_app.widgets.labels import plain_tip


class ElidedCombo(QComboBox):
    """The whole text of what is chosen is the tooltip."""

    def __init__(self) -> None:
        super().__init__()
        self.currentTextChanged.connect(lambda text: self.setToolTip(plain_tip(text)))

    def paintEvent(self, _event: QPaintEvent) -> None:
        painter = QStylePainter(self)
        option = QStyleOptionComboBox()
        self.initStyleOption(option)
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        field = self.style().subControlRect(
            QStyle.ComplexControl.CC_ComboBox, option, QStyle.SubControl.SC_ComboBoxEditField, self
        )
        whole = option.currentText
        option.currentText = self.fontMetrics().elidedText(whole, Qt.TextElideMode.ElideMiddle, field.width())
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)
        painter.end()
