//! Compiles the shims: shared libraries for LD_PRELOAD, which have to be C (the workspace forbids unsafe).

use std::{env, error::Error, path::PathBuf, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-env-changed=CC");
    compile("shim/powerloss.c", "libpowerloss.so", "KV_POWERLOSS_SHIM")?;
    compile("shim/volume.c", "libvolume.so", "KV_VOLUME_SHIM")
}

/// Compiles `source`; `variable` says at compile time of the crate where the library is.
fn compile(source: &str, library: &str, variable: &str) -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={source}");
    let shim = PathBuf::from(env::var("OUT_DIR")?).join(library);
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let status = Command::new(&compiler)
        .args([
            "-std=gnu11",
            "-O2",
            "-g",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fPIC",
            "-shared",
            "-pthread",
            "-o",
        ])
        .arg(&shim)
        .args([source, "-ldl"])
        .status()
        .map_err(|error| format!("the C compiler {compiler} does not start: {error}"))?;
    if !status.success() {
        return Err(format!("{compiler} could not compile {source}: {status}").into());
    }
    println!("cargo:rustc-env={variable}={}", shim.display());
    Ok(())
}
