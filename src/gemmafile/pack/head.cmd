@echo off & cls
setlocal
set "SELF=%~f0"
set "PY=%GEMMAFILE_PYTHON%"
if not defined PY where py >nul 2>nul && set "PY=py -3"
if not defined PY where python >nul 2>nul && set "PY=python"
if not defined PY echo gemmafile: install Python 3.11 or newer from python.org or the Store, then start this file again 1>&2 & exit /b 127
%PY% -I -S -c "@PYTHON@" "%SELF%" "" %*
exit /b %errorlevel%
