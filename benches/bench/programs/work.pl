# A stretch of ordinary Perl: hashes of lists, string building, regular expressions. Prints a checksum.
use strict;
use warnings;

my $state = 12345;
sub draw { $state = ($state * 1103515245 + 12345) % (2**31); return $state % $_[0]; }

my %places;
push @{ $places{ "word" . draw(40_000) } }, $_ for 1 .. 300_000;
my $check = 0;
$check += @{ $places{$_} } * length($_) for grep { /7$/ } sort keys %places;
my $text = join ",", map { "$_=" . join("-", @{ $places{$_} }) } sort keys %places;
my %lengths;
while ($text =~ /(\w+)=([\d-]+)/g) {
    my ($word, $list) = ($1, $2);
    my @parts = split /-/, $list;
    $lengths{ scalar @parts } .= substr($word, -2);
}
$check += length($lengths{$_}) * $_ for keys %lengths;
my @lines = map { "x" x draw(400) } 1 .. 60_000;
$check += length(join "\n", sort { length $a <=> length $b } @lines);
print "$check\n";
