; Installer for Windows, by Inno Setup 6. NOT YET RUN: written beside the Linux packages, checked by reading only.
; `python packaging/build.py` calls it:  iscc /DVersion=VERSION packaging\windows\loradesk.iss
#ifndef Version
  #error Give the version: iscc /DVersion=... (packaging/build.py takes it from pyproject.toml)
#endif

[Setup]
AppId={{6B0A2C53-8F0C-4C0E-9B57-6D1B6F9E7A41}
AppName=Loradesk
AppVersion={#Version}
AppPublisher=The Loradesk developers
DefaultDirName={autopf}\Loradesk
DefaultGroupName=Loradesk
; For one user no administrator is needed; the dialog offers an installation for all.
PrivilegesRequired=lowest
PrivilegesRequiredOverridesAllowed=dialog
ArchitecturesAllowed=x64compatible
ArchitecturesInstallIn64BitMode=x64compatible
SourceDir=..\..
OutputDir=dist
OutputBaseFilename=loradesk-{#Version}-windows-x64
SetupIconFile=build\icons\loradesk.ico
UninstallDisplayIcon={app}\loradesk.exe
LicenseFile=LICENSE
Compression=lzma2/normal
SolidCompression=yes
ChangesAssociations=yes
ChangesEnvironment=yes
WizardStyle=modern

[Tasks]
Name: "desktopicon"; Description: "{cm:CreateDesktopIcon}"; GroupDescription: "{cm:AdditionalIcons}"; Flags: unchecked
Name: "path"; Description: "Put loradesk-cli on the PATH"; Flags: unchecked

[InstallDelete]
; An older version may have files that this one has not.
Type: filesandordirs; Name: "{app}\_internal"

[Files]
Source: "dist\loradesk\*"; DestDir: "{app}"; Flags: ignoreversion recursesubdirs createallsubdirs

[Icons]
Name: "{group}\Loradesk"; Filename: "{app}\loradesk.exe"
Name: "{autodesktop}\Loradesk"; Filename: "{app}\loradesk.exe"; Tasks: desktopicon

[Registry]
Root: HKA; Subkey: "Software\Classes\.gguf\OpenWithProgids"; ValueType: string; ValueName: "Loradesk.gguf"; ValueData: ""; Flags: uninsdeletevalue
Root: HKA; Subkey: "Software\Classes\Loradesk.gguf"; ValueType: string; ValueData: "GGUF language model"; Flags: uninsdeletekey
Root: HKA; Subkey: "Software\Classes\Loradesk.gguf\DefaultIcon"; ValueType: string; ValueData: "{app}\loradesk.exe,0"
Root: HKA; Subkey: "Software\Classes\Loradesk.gguf\shell\open\command"; ValueType: string; ValueData: """{app}\loradesk.exe"" ""%1"""
; Ordering files are plain JSON: Loradesk is offered for .json ("Open with"), every default stays what it is.
Root: HKA; Subkey: "Software\Classes\.json\OpenWithProgids"; ValueType: string; ValueName: "Loradesk.ordering"; ValueData: ""; Flags: uninsdeletevalue
Root: HKA; Subkey: "Software\Classes\Loradesk.ordering"; ValueType: string; ValueData: "Ordering file of LoRA or X-LoRA adapters"; Flags: uninsdeletekey
Root: HKA; Subkey: "Software\Classes\Loradesk.ordering\DefaultIcon"; ValueType: string; ValueData: "{app}\loradesk.exe,0"
Root: HKA; Subkey: "Software\Classes\Loradesk.ordering\shell\open\command"; ValueType: string; ValueData: """{app}\loradesk.exe"" ""%1"""
Root: HKCU; Subkey: "Environment"; ValueType: expandsz; ValueName: "Path"; ValueData: "{olddata};{app}"; Tasks: path; Check: NotOnPath

[Run]
Filename: "{app}\loradesk.exe"; Description: "{cm:LaunchProgram,Loradesk}"; Flags: nowait postinstall skipifsilent

[Code]
function PathWith(Entry: string; var Path: string): Boolean;
begin
  if not RegQueryStringValue(HKCU, 'Environment', 'Path', Path) then
    Path := '';
  Result := Pos(';' + Uppercase(Entry) + ';', ';' + Uppercase(Path) + ';') > 0;
end;

function NotOnPath: Boolean;
var
  Path: string;
begin
  Result := not PathWith(ExpandConstant('{app}'), Path);
end;

procedure CurUninstallStepChanged(Step: TUninstallStep);
var
  Path, Entry: string;
  At: Integer;
begin
  Entry := ExpandConstant('{app}');
  if (Step = usPostUninstall) and PathWith(Entry, Path) then
  begin
    Path := ';' + Path + ';';
    At := Pos(';' + Uppercase(Entry) + ';', Uppercase(Path));
    Delete(Path, At, Length(Entry) + 1);
    Path := Copy(Path, 2, Length(Path) - 2);
    RegWriteExpandStringValue(HKCU, 'Environment', 'Path', Path);
  end;
end;
