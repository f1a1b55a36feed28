//! The guard against web cache deception: a page that is somebody's own, asked for under the name of a picture.
//!
//! An attacker has a user open `/account/x.css`; an origin that ignores the end of the path answers with the account, and a
//! cache that goes by the extension keeps it for all. So a response must be what its extension says.

/// Whether a response to this path is another kind of thing than the path's extension says. Extensions that are not those of
/// static files say nothing.
pub fn contradicts_extension(path: &str, content_type: Option<&str>) -> bool {
    let segment = path.rsplit('/').next().unwrap_or_default();
    let Some((_, extension)) = segment.rsplit_once('.') else { return false };
    let Some((_, expected)) = KINDS.iter().find(|(known, _)| known.eq_ignore_ascii_case(extension)) else {
        return false;
    };
    let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let fits = |start: &str| {
        media_type.get(..start.len()).is_some_and(|beginning| beginning.eq_ignore_ascii_case(start))
    };
    !(media_type.eq_ignore_ascii_case("application/octet-stream") || expected.iter().any(|start| fits(start)))
}

const IMAGE: &[&str] = &["image/"];
const FONT: &[&str] = &["font/", "application/font", "application/x-font", "application/vnd.ms-fontobject"];
const SCRIPT: &[&str] = &["text/javascript", "application/javascript", "application/x-javascript"];
const MEDIA: &[&str] = &["audio/", "video/", "application/ogg"];
const ARCHIVE: &[&str] = &["application/zip", "application/gzip", "application/x-"];

/// Extensions of static files, and how the media types begin that fit them.
const KINDS: [(&str, &[&str]); 33] = [
    ("avif", IMAGE),
    ("bmp", IMAGE),
    ("gif", IMAGE),
    ("ico", IMAGE),
    ("jpeg", IMAGE),
    ("jpg", IMAGE),
    ("png", IMAGE),
    ("svg", IMAGE),
    ("tiff", IMAGE),
    ("webp", IMAGE),
    ("eot", FONT),
    ("otf", FONT),
    ("ttf", FONT),
    ("woff", FONT),
    ("woff2", FONT),
    ("js", SCRIPT),
    ("mjs", SCRIPT),
    ("css", &["text/css"]),
    ("csv", &["text/csv"]),
    ("pdf", &["application/pdf"]),
    ("txt", &["text/plain"]),
    ("wasm", &["application/wasm"]),
    ("flac", MEDIA),
    ("m4a", MEDIA),
    ("mp3", MEDIA),
    ("mp4", MEDIA),
    ("ogg", MEDIA),
    ("wav", MEDIA),
    ("webm", MEDIA),
    ("7z", ARCHIVE),
    ("gz", ARCHIVE),
    ("tar", ARCHIVE),
    ("zip", ARCHIVE),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, content_type: Option<&str>, expected: bool) {
        assert_eq!(contradicts_extension(path, content_type), expected, "{path} {content_type:?}");
    }

    #[test]
    fn a_page_under_the_name_of_a_static_file_is_suspect() {
        check("/account/x.css", Some("text/html"), true);
        check("/account/x.CSS", Some("text/html; charset=utf-8"), true);
        check("/account;x.png", Some("application/json"), true);
        check("/account/x.js", None, true);
    }

    #[test]
    fn what_fits_and_what_has_no_static_extension_is_not() {
        check("/x.css", Some("Text/CSS; charset=utf-8"), false);
        check("/x.png", Some("image/webp"), false);
        check("/x.woff2", Some("application/font-woff2"), false);
        check("/x.zip", Some("application/octet-stream"), false);
        check("/x.css/account", Some("text/html"), false);
        check("/account", Some("text/html"), false);
        check("/account.html", Some("application/json"), false);
        check("/.", None, false);
    }
}
