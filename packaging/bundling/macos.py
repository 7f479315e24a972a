"""What macOS reads of the application: Info.plist's keys beside those that PyInstaller writes. Not yet run."""

from __future__ import annotations

GGUF = "org.loradesk.gguf"

INFO: dict[str, object] = {
    "NSHighResolutionCapable": True,
    "LSMinimumSystemVersion": "12.0",
    # .gguf has no type of the system; other applications may declare one of their own for it.
    "UTImportedTypeDeclarations": [
        {
            "UTTypeIdentifier": GGUF,
            "UTTypeDescription": "GGUF language model",
            "UTTypeConformsTo": ["public.data"],
            "UTTypeTagSpecification": {"public.filename-extension": ["gguf"]},
        }
    ],
    # Models open with a double click; other JSON files and folders only where somebody asks for it ("Open with").
    "CFBundleDocumentTypes": [
        {
            "CFBundleTypeName": "GGUF language model",
            "CFBundleTypeRole": "Viewer",
            "LSHandlerRank": "Default",
            "LSItemContentTypes": [GGUF],
        },
        {
            "CFBundleTypeName": "Ordering file",
            "CFBundleTypeRole": "Editor",
            "LSHandlerRank": "Alternate",
            "LSItemContentTypes": ["public.json"],
        },
        {
            "CFBundleTypeName": "Folder of a model or adapter",
            "CFBundleTypeRole": "Viewer",
            "LSHandlerRank": "Alternate",
            "LSItemContentTypes": ["public.folder"],
        },
    ],
}
