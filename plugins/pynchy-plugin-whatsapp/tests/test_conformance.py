"""What every channel must do, tried with this one."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from whatsapp_side import WhatsAppSide

from pynchy.testing import ChannelConformance, FarSide


class TestWhatsApp(ChannelConformance):
    def far_side(self, folder: Path) -> AbstractAsyncContextManager[FarSide]:
        return WhatsAppSide.open(folder)
