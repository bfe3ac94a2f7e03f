//! Compiles the power-loss shim: a shared library for LD_PRELOAD, which has to be C (the workspace forbids unsafe).

use std::{env, error::Error, path::PathBuf, process::Command};

const SOURCE: &str = "shim/powerloss.c";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-env-changed=CC");
    let shim = PathBuf::from(env::var("OUT_DIR")?).join("libpowerloss.so");
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
        .args([SOURCE, "-ldl"])
        .status()
        .map_err(|error| format!("the C compiler {compiler} does not start: {error}"))?;
    if !status.success() {
        return Err(format!("{compiler} could not compile {SOURCE}: {status}").into());
    }
    println!("cargo:rustc-env=KV_POWERLOSS_SHIM={}", shim.display());
    Ok(())
}
